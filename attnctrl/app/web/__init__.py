"""The app in the browser: frame, sessions, jobs; a tab is one file in tabs/."""
