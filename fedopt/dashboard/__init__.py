"""A local web page that shows the runs of a folder while they go on.

`index.py` knows the runs, `app.py` serves them, `static/` is the page.
"""
