"""The files that `fedopt init` writes, as templates in which $name stands for the project's name."""
