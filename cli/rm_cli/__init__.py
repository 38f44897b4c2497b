"""The command line. Commands are imported when they are called, since each image has only what its own need."""
