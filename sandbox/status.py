"""What is answered where a request cannot be served: a Kubernetes ``Status``. Pure."""

from __future__ import annotations

from sandbox.kinds import Kind, Object


class ApiError(Exception):
    """Answered with its HTTP status and a ``Status`` document."""

    def __init__(self, code: int, reason: str, message: str, **details: object) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.details = details

    def document(self) -> Object:
        """The ``Status`` that says so."""
        status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
        return status | {"message": str(self), "reason": self.reason, "code": self.code, "details": self.details}


def success(kind: Kind, document: Object) -> Object:
    """The ``Status`` after a deletion."""
    details = _details(kind, document["metadata"]["name"]) | {"uid": document["metadata"]["uid"]}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def bad_request(message: str) -> ApiError:
    """400."""
    return ApiError(400, "BadRequest", message)


def not_found(kind: Kind, name: str) -> ApiError:
    """404 for an object."""
    return ApiError(404, "NotFound", f'{kind.resource} "{name}" not found', **_details(kind, name))


def no_such_path() -> ApiError:
    """404 for a path that leads nowhere."""
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def not_allowed() -> ApiError:
    """405."""
    return ApiError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def already_exists(kind: Kind, name: str) -> ApiError:
    """409 on creation."""
    return ApiError(409, "AlreadyExists", f'{kind.resource} "{name}" already exists', **_details(kind, name))


def conflict(kind: Kind, name: str) -> ApiError:
    """409 on update."""
    problem = "the object has been modified; please apply your changes to the latest version and try again"
    message = f'Operation cannot be fulfilled on {kind.resource} "{name}": {problem}'
    return ApiError(409, "Conflict", message, **_details(kind, name))


def invalid(kind: Kind, name: str, field: str, problem: str) -> ApiError:
    """422: a field has a value that it cannot have."""
    causes = [{"reason": "FieldValueInvalid", "message": problem, "field": field}]
    message = f'{kind.name}{"." + kind.group if kind.group else ""} "{name}" is invalid: {field}: {problem}'
    return ApiError(422, "Invalid", message, name=name, group=kind.group, kind=kind.name, causes=causes)


def expired(version: int) -> ApiError:
    """410: the history does not reach back that far."""
    return ApiError(410, "Expired", f"too old resource version: {version}")


def _details(kind: Kind, name: str) -> Object:
    return {"name": name, "group": kind.group, "kind": kind.plural}
