"""Images, heights and flow for the eye."""
