"""The files that `fedopt init` writes, as templates $name being the project's name."""
