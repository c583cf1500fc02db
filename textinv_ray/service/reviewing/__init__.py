"""People's decisions about learned words: `textinv review`, its page, and files of decisions."""
