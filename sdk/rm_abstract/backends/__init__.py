"""The plugins that come with RM Abstract."""
