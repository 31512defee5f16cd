package inject

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"

	"understudy.mesh/pkg/contract"
	"understudy.mesh/pkg/profile"
)

// Environment is what a patch depends on besides the pod and its settings.
type Environment struct {
	// Namespace is where the pod will be; its own name for that may be missing.
	Namespace Namespace
	// Native is that every node can run native sidecars, Resize that every node can change a running pod's resources.
	Native, Resize bool
	// Variables are those of the webhook's URL (/inject/cluster/X/net/Y), by the proxy's names for them. Who compares a pod that
	// runs and knows of no URL leaves them nil: they are taken to be those that it was injected with.
	Variables map[string]string
	// IstioVersion is the release of the oldest istiod that the pod may get, such as 1.28.1; "": it is not known. Istiod makes what a
	// proxy of that release takes, and EnvoyFilters select by it, so it has to be no newer than istiod.
	IstioVersion string
	// Workload is what makes the pod, if that is known better than by the pod's owner.
	Workload Workload
}

// builder makes one patch.
type builder struct {
	pod                 *podView
	settings            *profile.Settings
	env                 Environment
	uid, gid            int64
	native              bool // the proxy is a native sidecar
	hot                 bool // there are two slots
	own                 recorded
	earlier             *recorded // of the pass before, which is undone
	user                overrides
	probes              probers           // what the agent asks in the application's name
	scrape              string            // where the agent finds the application's metrics
	labels, annotations map[string]string // as they are to be
	ops                 operations
	warnings            []string
}

func newBuilder(p *podView, s *profile.Settings, env Environment) *builder {
	b := &builder{pod: p, settings: s, env: env, uid: contract.ProxyUID, gid: contract.ProxyUID, hot: s.Hot()}
	b.native = *s.Proxy.Native == profile.NativeAlways || *s.Proxy.Native == profile.NativeAuto && env.Native
	b.labels, b.annotations = map[string]string{}, map[string]string{}
	maps.Copy(b.labels, p.Metadata.Labels)
	maps.Copy(b.annotations, p.Metadata.Annotations)
	return b
}

// Patch returns the JSON patch that injects a pod; nil if there is nothing to do, because it is injected already. It changes nothing
// of the application's but the leaves of probes and hooks. An error is for the user: nothing is injected then.
func (pod *Pod) Patch(s *profile.Settings, env Environment) (ops []byte, warnings []string, err error) {
	p := pod.view
	b := newBuilder(p, s, env)
	if b.own, err = b.record(); err != nil {
		return nil, nil, err
	}
	earlier, err := readStatus(p.Metadata.Annotations)
	switch {
	case err != nil:
		return nil, nil, err
	case earlier != nil && earlier.Hash == b.own.Hash && earlier.Image == b.own.Image:
		err = b.touch(earlier)
	default:
		b.earlier = earlier
		err = b.inject()
	}
	if err != nil {
		return nil, nil, err
	}
	ops, err = b.ops.bytes()
	return ops, b.warnings, err
}

// record is what this pass will have recorded, as far as it is of the settings.
func (b *builder) record() (recorded, error) {
	hash, err := b.hash()
	return recorded{Revision: contract.Revision, Hash: hash, Image: *b.settings.Proxy.Image, Variables: b.env.Variables}, err
}

// hash is of all that the patch is made of besides the pod and the proxy's image, and of the pod's annotations that are not settings.
func (b *builder) hash() (string, error) {
	digest, err := b.settings.Digest()
	if err != nil {
		return "", err
	}
	variables := b.env.Variables
	if len(variables) == 0 {
		variables = nil // whether nobody gives any, or gives none, is the same
	}
	text, err := json.Marshal([]any{
		generation, digest[:], b.native, b.env.Resize, variables, b.env.Namespace.Annotations[openShiftUIDs],
		b.pod.Metadata.Annotations[userVolumeAnnotation], b.pod.Metadata.Annotations[userVolumeMountAnnotation],
	})
	if err != nil {
		return "", fmt.Errorf("write what a patch is made of: %w", err)
	}
	sum := sha256.Sum256(text)
	const enough = 8 // of its bytes: it tells settings apart and guards nothing
	return hex.EncodeToString(sum[:enough]), nil
}

// generation counts the changes of what a patch makes of the same settings.
const generation = 1

// inject makes the patch of a pod that is not injected, or with other settings.
func (b *builder) inject() error {
	var known probers
	if b.earlier != nil {
		for _, name := range b.earlier.Annotations {
			delete(b.annotations, name)
		}
		for _, name := range b.earlier.Labels {
			delete(b.labels, name)
		}
		var err error
		if known, err = b.recall(); err != nil {
			return err
		}
	}
	if err := b.findUser(); err != nil {
		return err
	}
	b.rewriteProbes(known)
	if err := b.mergePrometheus(); err != nil {
		return err
	}
	slots, err := b.slots()
	if err != nil {
		return err
	}
	if err := b.volumes(); err != nil {
		return err
	}
	if err := b.arrange(slots, b.initContainer()); err != nil {
		return err
	}
	b.pullSecrets()
	b.warnOfNamespace()
	b.writeMetadata()
	return nil
}

func (b *builder) warn(format string, args ...any) {
	b.warnings = append(b.warnings, fmt.Sprintf(format, args...))
}
