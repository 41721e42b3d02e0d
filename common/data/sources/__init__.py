"""The sources of labelled texts: a file for each kind, and the table of readers."""
