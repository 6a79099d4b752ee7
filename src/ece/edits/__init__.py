"""What an edit is: a value that can be applied, reverted, saved and loaded."""
