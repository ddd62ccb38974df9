"""What people see: the report, its figures, and what the terminal shows."""
