"""An update and the loop around it: all that a defense ever sees."""
