"""Parts for models of other libraries."""
