"""What comes out: tables, statistics, figures, reports."""
