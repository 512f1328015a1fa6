"""Programs that try to pass without solving, or to do what a program under test must not do."""
