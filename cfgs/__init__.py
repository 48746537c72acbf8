"""The shipped configs; the folder is a package only so that an installed copy finds them."""
