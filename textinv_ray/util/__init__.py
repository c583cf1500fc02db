"""What every room uses: errors for users, redacted URIs, retries, text."""
