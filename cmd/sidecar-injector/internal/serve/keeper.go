package serve

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"

	"understudy.mesh/cmd/sidecar-injector/internal/certs"
	"understudy.mesh/pkg/inject/webhook"
)

const (
	// lookEvery is how often everything is looked at whether or not something is known to have changed: what was lost is back within
	// two looks, and a lease.
	lookEvery = 5 * time.Second
	// callLimit is how long one call of the API server may take.
	callLimit = 10 * time.Second
	// fieldManager is who we are in server-side apply.
	fieldManager = "sidecar-injector"
	// secretName is that of the Secret with the authority.
	secretName = "sidecar-injector-ca"
)

// keeper keeps what one replica alone may write: the authority, the configuration of the webhook and what profiles say of themselves.
type keeper struct {
	options Options
	client  dynamic.Interface
	caches  *caches
	log     *slog.Logger
	now     func() time.Time

	// authority is what this replica signs with; it goes back into a Secret that was lost, and nobody notices.
	authority *authority
	// trusted is since when the API server has been seen to trust the next authority; zero: it does not, or was not asked yet.
	// It has Go's monotonic clock, so that no step of the wall clock shortens the wait.
	trusted time.Time
	// applied is the configuration that was last written, and the version that the API server gave it.
	applied        []byte
	appliedVersion string
	// conflict is who else claims istio-injection=enabled.
	conflict string
	// deployment is what was last applied to the Deployment.
	deployment []byte
	problem    string // the last one that was logged
}

// run keeps until ctx ends. wake asks for a look before its time.
func (k *keeper) run(ctx context.Context, wake <-chan struct{}) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		err := k.look(ctx)
		if text := fmt.Sprint(err); err != nil && ctx.Err() == nil && text != k.problem {
			k.log.Error("not kept", "err", err)
			k.problem = text
		} else if err == nil {
			k.problem = ""
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// look does what there is to do. One part does not wait for another: a configuration is written with the authority that there is.
func (k *keeper) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	var errs []error
	if k.options.ownAuthority() {
		errs = append(errs, k.keepAuthority(ctx))
	}
	errs = append(errs, k.keepConfiguration(ctx))
	errs = append(errs, k.keepConditions(ctx), k.keepDeployment(ctx))
	return errors.Join(errs...)
}

func (k *keeper) secrets() dynamic.ResourceInterface {
	return k.client.Resource(secretsResource).Namespace(k.options.Namespace)
}

// keepAuthority reads the Secret, takes the next step, and writes what came of it.
func (k *keeper) keepAuthority(ctx context.Context) error {
	secret, err := k.secrets().Get(ctx, secretName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read the authority: %w", err)
	}
	if apierrors.IsNotFound(err) {
		secret = nil
	}
	state, lost := k.readState(secret)
	settled := !k.trusted.IsZero() && time.Since(k.trusted) >= k.options.Settle
	next, what, err := state.Step(k.now(), k.options.Lives, settled)
	if err != nil {
		return err
	}
	k.authority.set(next)
	if what == "" && !lost {
		return nil
	}
	if lost {
		k.log.Warn("the Secret of the authority was lost or unreadable, and is written again", "secret", secretName)
	}
	if what != "" {
		k.log.Info("authority", "what", what)
		k.trusted = time.Time{}
	}
	return k.writeState(ctx, secret)
}

// readState is the state of a Secret, or the one that was known if the Secret has none that can be read: lost.
func (k *keeper) readState(secret *unstructured.Unstructured) (state certs.State, lost bool) {
	known := k.authority.get()
	if secret == nil {
		return known, !known.IsZero()
	}
	state, err := parseSecret(secret)
	switch {
	case err != nil:
		k.log.Error("the Secret of the authority cannot be read", "secret", secretName, "err", err)
		return known, true
	case state.IsZero() && !known.IsZero():
		return known, true
	}
	return state, false
}

// writeState writes the state. A Secret that has changed since it was read is left alone: the next look takes it as it is then.
func (k *keeper) writeState(ctx context.Context, before *unstructured.Unstructured) error {
	data, err := k.authority.get().Data()
	if err != nil {
		return err
	}
	object := before
	if object == nil {
		object = &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Secret", "type": "Opaque"}}
		object.SetName(secretName)
		object.SetNamespace(k.options.Namespace)
	}
	encoded := make(map[string]any, len(data))
	for key, value := range data {
		encoded[key] = base64.StdEncoding.EncodeToString(value)
	}
	object.Object["data"] = encoded
	if before == nil {
		_, err = k.secrets().Create(ctx, object, metav1.CreateOptions{FieldManager: fieldManager})
	} else {
		_, err = k.secrets().Update(ctx, object, metav1.UpdateOptions{FieldManager: fieldManager})
	}
	if err != nil {
		return fmt.Errorf("write the authority to the Secret %s/%s: %w", k.options.Namespace, secretName, err)
	}
	return nil
}

func (k *keeper) configurations() dynamic.ResourceInterface {
	return k.client.Resource(configurationsResource)
}

// keepConfiguration writes the entries and whom to trust, if the API server has them otherwise.
func (k *keeper) keepConfiguration(ctx context.Context) error {
	options, err := k.webhookOptions()
	if err != nil {
		return err // the mesh's settings are not known: the entries stay as they are
	}
	live, err := k.configurations().Get(ctx, webhook.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read the MutatingWebhookConfiguration: %w", err)
	}
	want, err := k.configuration(options)
	if err != nil {
		return err
	}
	text, err := json.Marshal(want)
	if err != nil {
		return fmt.Errorf("write the MutatingWebhookConfiguration: %w", err)
	}
	if live != nil && bytes.Equal(text, k.applied) && live.GetResourceVersion() == k.appliedVersion {
		k.noteTrust(live)
		return nil
	}
	written, err := k.configurations().Apply(ctx, webhook.Name, want, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	if err != nil {
		return fmt.Errorf("apply the MutatingWebhookConfiguration %s: %w", webhook.Name, err)
	}
	if live == nil || written.GetResourceVersion() != live.GetResourceVersion() {
		k.log.Info("webhook configured", "entries", len(webhook.Webhooks(options)), "configuration", webhook.Name)
	}
	k.applied, k.appliedVersion = text, written.GetResourceVersion()
	k.noteTrust(written)
	return nil
}

// configuration is the object to apply. Nothing is in it that somebody else may want to say.
func (k *keeper) configuration(options webhook.Options) (*unstructured.Unstructured, error) {
	entries := []any{}
	for _, w := range webhook.Webhooks(options) {
		if k.options.URL != "" {
			w.ClientConfig = admissionregistrationv1.WebhookClientConfig{URL: &k.options.URL, CABundle: w.ClientConfig.CABundle}
		}
		entry, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&w)
		if err != nil {
			return nil, fmt.Errorf("write webhook %s: %w", w.Name, err)
		}
		entries = append(entries, entry)
	}
	object := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration", "webhooks": entries,
	}}
	object.SetName(webhook.Name)
	return object, nil
}

// webhookOptions are what the entries depend on, as it is now.
func (k *keeper) webhookOptions() (webhook.Options, error) {
	policy, err := k.caches.policy()
	if err != nil {
		return webhook.Options{}, err
	}
	options := policy.webhook
	if k.options.DefaultRevision {
		conflict := k.claim()
		if conflict != "" && conflict != k.conflict {
			k.log.Warn("another injector takes the pods of namespaces with istio-injection=enabled: ours does not ask for them", "who", conflict)
		}
		k.conflict, options.Default = conflict, conflict == ""
	}
	if k.options.ownAuthority() {
		state := k.authority.get()
		if state.IsZero() {
			return webhook.Options{}, errors.New("the webhook is not configured before there is an authority")
		}
		options.CABundle = state.Bundle()
	} else if k.options.CAFile != "" {
		if options.CABundle, err = os.ReadFile(k.options.CAFile); err != nil {
			return webhook.Options{}, err
		}
	}
	return options, nil
}

// claim says which other configuration takes the pods of namespaces with istio-injection=enabled; "" is none.
func (k *keeper) claim() string {
	var claims []string
	for _, object := range k.caches.configurations.store.List() {
		o, ok := object.(*unstructured.Unstructured)
		if !ok || o.GetName() == webhook.Name {
			continue
		}
		var c admissionregistrationv1.MutatingWebhookConfiguration
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(o.Object, &c); err != nil {
			k.log.Warn("a MutatingWebhookConfiguration cannot be read", "name", o.GetName(), "err", err)
			continue
		}
		if name := webhook.ClaimsDefault(&c); name != "" {
			claims = append(claims, fmt.Sprintf("webhook %s of MutatingWebhookConfiguration %s", name, c.Name))
		}
	}
	slices.Sort(claims)
	if len(claims) == 0 {
		return ""
	}
	return claims[0]
}

// noteTrust notes since when every entry that the API server has trusts the next authority.
func (k *keeper) noteTrust(live *unstructured.Unstructured) {
	var c admissionregistrationv1.MutatingWebhookConfiguration
	state := k.authority.get()
	trusts := state.Waiting() && runtime.DefaultUnstructuredConverter.FromUnstructured(live.Object, &c) == nil
	for _, w := range c.Webhooks {
		trusts = trusts && state.Trusts(w.ClientConfig.CABundle)
	}
	switch {
	case !trusts:
		k.trusted = time.Time{}
	case k.trusted.IsZero():
		k.trusted = time.Now()
	}
}
