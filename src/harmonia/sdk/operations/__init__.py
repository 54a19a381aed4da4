"""GraphQL operations, one module for each area: results as structs, and documents that select exactly their fields."""
