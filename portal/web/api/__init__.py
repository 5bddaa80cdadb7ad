"""The API for programs, `/api/v1`: a table of routes, and a frame that all of them share.

    route     a route, and the base of all models
    frame     tokens, limits, permissions, requests, answers, idempotency keys
    problems  errors
    limits    how many requests a token may send
    openapi   the document that describes the routes
    pages     the document and the page of documentation
    search    lists and groups of messages
    messages  one message, and what is done with messages
    jobs      everything that a search finds, in the background
    rules, recipients, statistics

To add a route: write a model of its query or body and one of its answer, and a handler that takes a `Caller` and
returns that answer, and describe them in a `Route` of a table that `Api.table` includes. Checks of the query and body,
the OpenAPI document and the page of documentation follow from it. The handler asks `Staff` again for the domain or
delivery that it acts on, acts by the same functions as the console, and passes `Caller.actor` on to them. Errors are
those of `portal.model.errors`. The route is denied until `API` in tests/web/test_api.py names it.
"""

from portal.web.api.frame import Api

__all__ = ["Api"]
