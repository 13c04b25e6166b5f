"""Refuses text that no tokenizer can take: JSON may spell half a character ("\\ud800"), and UTF-8 cannot."""

from __future__ import annotations

from glmserve.protocol.errors import InvalidRequestError


def check_unicode(text: str) -> None:
    """Raises InvalidRequestError where `text` holds a surrogate by itself."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"the text is not valid Unicode: character {error.start} is {text[error.start]!r}, half of a surrogate pair"
        raise InvalidRequestError(message) from None
