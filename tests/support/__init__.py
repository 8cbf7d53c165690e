"""What several folders of tests share: programs and objects to test against."""
