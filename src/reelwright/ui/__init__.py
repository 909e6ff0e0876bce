"""The page: a workspace, a queue of jobs, and the processes that do them. Needs the extra `ui` only for the server."""
