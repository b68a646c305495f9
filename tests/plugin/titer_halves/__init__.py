"""A defense and an edit that do half of what is asked."""
