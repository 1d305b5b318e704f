"""Failures in OpenAI's shape: ``type`` and ``code`` are for programs, the message for people."""

from __future__ import annotations

from typing import Any

from palestra.errors import ContextOverflow, EngineError
from palestra.policy.gateway.ledger import LedgerFull, UnknownSession
from palestra.policy.gateway.requests import BadRequest


def refusal(error: Exception) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the body that say what went wrong."""
    status, kind, code = _classify(error)
    body: dict[str, Any] = {"message": str(error), "type": kind, "code": code}
    if isinstance(error, BadRequest):
        body["param"] = error.field
    return status, {"error": body}


def _classify(error: Exception) -> tuple[int, str, str]:
    match error:
        case BadRequest():
            code = "malformed_request" if error.status == 422 else "unsupported_option"
            return error.status, "invalid_request_error", code
        case ContextOverflow():
            return 400, "invalid_request_error", "context_length_exceeded"
        case UnknownSession():
            return 404, "invalid_request_error", "unknown_session"
        case LedgerFull():
            return 503, "LedgerFull", "too_many_sessions"
        case EngineError():
            return 503, type(error).__name__, "engine_error"
        case _:
            return 503, type(error).__name__, "infrastructure_error"
