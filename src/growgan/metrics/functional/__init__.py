"""One metric per file, as pure functions of features or of images."""
