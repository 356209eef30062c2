"""`python -m fedopt.deployment.health URL [CA.crt]`: exit code 0 where a service answers.

What containers check their health with: no curl, and no import that takes time.
"""

from __future__ import annotations

import ssl
import sys
import urllib.request


def main(words: list[str]) -> int:
    """Return 0 where the address answers with 200, else 1.

    Args:
        words: the URL and, for HTTPS, the authority's certificate.
    """
    context = ssl.create_default_context(cafile=words[1]) if len(words) > 1 else None
    try:
        with urllib.request.urlopen(words[0], timeout=4, context=context) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
