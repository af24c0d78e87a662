"""What several tests share: import it as tests.lib.NAME."""
