package xds

// Same is same, of bodies.
func Same(url string, a, b []byte) bool { return same(url, NewResource("", a), NewResource("", b)) }
