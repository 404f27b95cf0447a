"""What can be done without a network: one file per recipe, each a few lines over a library."""
