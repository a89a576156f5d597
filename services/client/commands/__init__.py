"""The commands of the `trivium` command line, a module for each thing that they are about."""
