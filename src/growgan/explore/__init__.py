"""The explorer: a local web page that shows a run and edits its samples."""
