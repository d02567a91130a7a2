"""What builds on the components, and parts for models of other libraries."""
