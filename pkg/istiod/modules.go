package istiod

import "understudy.mesh/pkg/xds"

const extensionsType = envoyPrefix + "config.core.v3.TypedExtensionConfig"

// give gives Envoy a response.
func (l *loop) give(resp *xds.Response) error {
	err := l.i.c.Relay.Give(resp)
	if err == nil && resp.Type == extensionsType {
		l.extensions = l.i.c.Relay.Given()
	}
	return err
}

// modules takes in that something has become of modules: the pod may have waited for that alone.
func (l *loop) modules() {
	l.giveModules()
	l.i.c.InForce()
}

// giveModules gives Envoy what is due of modules. It has no nonce: istiod hears nothing of it. On a new stream what istiod says comes first.
func (l *loop) giveModules() {
	if l.stream != nil && l.nonces[extensionsType] == "" {
		return
	}
	for resp := l.i.c.Modules.Due(); resp != nil; resp = l.i.c.Modules.Due() {
		if err := l.give(resp); err != nil { // Envoy asks for none any more
			return
		}
	}
}

// judged takes in Envoy's answers for what it was given of extensions, once all are there.
func (l *loop) judged() {
	if l.extensions == 0 || !l.i.c.Relay.Answered(l.extensions) {
		return
	}
	l.extensions = 0
	l.i.c.Modules.Answered(l.i.c.Relay.Status()[extensionsType].Refused)
	l.modules()
}
