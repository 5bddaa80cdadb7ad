"""One action on several deliveries: in parallel, and as a background job that goes on after the request."""
