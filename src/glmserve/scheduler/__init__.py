"""Which request runs next and which K/V blocks it gets.  Plain Python: no torch, no text, no sockets."""
