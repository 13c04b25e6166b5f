"""Tools beside the server.  They meet a server over HTTP alone, so they work against other servers too."""
