package serve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"understudy.mesh/pkg/profile"
)

// The conditions of a profile.
const (
	accepted   = "Accepted"
	inForce    = "InForce"
	notApplied = "NotApplied"
	conflicted = "Conflict"
)

// keepConditions writes what became of each profile into its status.
func (k *keeper) keepConditions(ctx context.Context) error {
	var errs []error
	for _, object := range k.caches.sidecarProfiles.store.List() {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			continue
		}
		status, err := k.status(o)
		if err == nil && status != nil {
			err = k.writeStatus(ctx, o, status)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("write the status of SidecarProfile %s/%s: %w", o.GetNamespace(), o.GetName(), err))
		}
	}
	return errors.Join(errs...)
}

// status is what a profile's should be; nil: it is.
func (k *keeper) status(o *unstructured.Unstructured) (*profile.Status, error) {
	has, err := readStatus(o)
	if err != nil {
		return nil, err
	}
	want := profile.Status{ObservedGeneration: o.GetGeneration()}
	for _, condition := range k.conditions(o) {
		condition.ObservedGeneration = o.GetGeneration()
		condition.LastTransitionTime = metav1.NewTime(k.now().UTC().Truncate(1e9))
		if before := meta.FindStatusCondition(has.Conditions, condition.Type); before != nil && before.Status == condition.Status {
			condition.LastTransitionTime = before.LastTransitionTime
		}
		want.Conditions = append(want.Conditions, condition)
	}
	if has.ObservedGeneration == want.ObservedGeneration && reflect.DeepEqual(byType(has.Conditions), byType(want.Conditions)) {
		return nil, nil
	}
	return &want, nil
}

// byType are conditions without their order and the location of their times.
func byType(all []metav1.Condition) map[string]metav1.Condition {
	of := make(map[string]metav1.Condition, len(all))
	for _, c := range all {
		c.LastTransitionTime = metav1.NewTime(c.LastTransitionTime.UTC())
		of[c.Type] = c
	}
	return of
}

func readStatus(o *unstructured.Unstructured) (profile.Status, error) {
	text, err := json.Marshal(o.Object["status"])
	if err != nil {
		return profile.Status{}, err
	}
	var status profile.Status
	err = json.Unmarshal(text, &status)
	return status, err
}

// conditions are those that a profile should have, less their times.
func (k *keeper) conditions(o *unstructured.Unstructured) []metav1.Condition {
	if o.GetName() != profile.Name {
		message := fmt.Sprintf("the settings of a namespace are those of the SidecarProfile %s alone", profile.Name)
		return []metav1.Condition{condition(accepted, false, "OtherName", message), condition(inForce, false, "OtherName", message)}
	}
	h, ok := k.caches.profiles.of(o.GetNamespace())
	if !ok || h.observed != o.GetGeneration() {
		return nil // the next look has it
	}
	all := []metav1.Condition{condition(accepted, true, "Valid", ""), condition(inForce, true, "InForce", "pods that are created are injected with these settings")}
	if h.err != nil {
		all[0] = condition(accepted, false, "Invalid", oneLine(h.err))
		message := fmt.Sprintf("generation %d is in force", h.generation)
		if h.spec == nil {
			message = "no earlier settings are known: pods that would be injected with these are refused"
		}
		all[1] = condition(inForce, false, "Invalid", message)
	}
	if o.GetNamespace() != k.options.Namespace {
		return all
	}
	if k.conflict != "" {
		all = append(all, condition(conflicted, true, "LabelClaimed", k.conflict+" takes the pods of namespaces with istio-injection=enabled: ours does not ask for them"))
	} else {
		all = append(all, condition(conflicted, false, "NoOther", ""))
	}
	if i := injectorOf(h.spec); i != nil && !managed(i) {
		all = append(all, condition(notApplied, true, "NotManaged", "replicaCount, nodeSelector and resources of spec.injector are those of the chart: set spec.injector.manage: true to apply them from here"))
	}
	return all
}

func condition(kind string, holds bool, reason, message string) metav1.Condition {
	status := metav1.ConditionFalse
	if holds {
		status = metav1.ConditionTrue
	}
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message}
}

// oneLine is a joined error without its line breaks.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

func (k *keeper) writeStatus(ctx context.Context, o *unstructured.Unstructured, status *profile.Status) error {
	if len(status.Conditions) == 0 {
		return nil
	}
	object, err := statusOf(o, status)
	if err != nil {
		return err
	}
	_, err = k.client.Resource(profilesResource).Namespace(o.GetNamespace()).
		ApplyStatus(ctx, o.GetName(), object, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return err
}

// statusOf is an object with nothing but its status, as it is applied.
func statusOf(o *unstructured.Unstructured, status *profile.Status) (*unstructured.Unstructured, error) {
	text, err := json.Marshal(status)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	if err := json.Unmarshal(text, &fields); err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{Object: map[string]any{"apiVersion": o.GetAPIVersion(), "kind": o.GetKind(), "status": fields}}
	object.SetName(o.GetName())
	object.SetNamespace(o.GetNamespace())
	return object, nil
}
