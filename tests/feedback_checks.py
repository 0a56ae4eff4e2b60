"""What the tests of all lessons' exercises ask of a feedback."""


def assert_wrong(feedback, words: str) -> None:
    """The answer was not right, and ``words`` name the mistake."""
    assert not feedback.right
    assert words in feedback.message
