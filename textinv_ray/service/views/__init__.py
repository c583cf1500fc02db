"""What people read, made from the store: results.parquet, report.html, `textinv status`."""
