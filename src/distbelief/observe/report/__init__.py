"""Runs as a page: what their files tell, drawn and written down in one file that needs no network."""
