package inject

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy.mesh/pkg/contract"
)

// slotPlace is where an earlier pass has put a slot, and its environment now.
type slotPlace struct {
	list  string
	index int
	env   []any
}

// places finds the slots of an earlier pass.
func (b *builder) places(r *recorded) ([]slotPlace, error) {
	t, err := b.pod.tree()
	if err != nil {
		return nil, err
	}
	var found []slotPlace
	for list, now := range map[string][]map[string]any{initContainers: t.Spec.InitContainers, containers: t.Spec.Containers} {
		for i, c := range now {
			name, _ := c["name"].(string)
			if r.has(list, name) && isSlot(name) {
				env, _ := c["env"].([]any)
				found = append(found, slotPlace{list, i, env})
			}
		}
	}
	slices.SortFunc(found, func(a, b slotPlace) int { return strings.Compare(a.path(), b.path()) })
	return found, nil
}

func (p slotPlace) path() string { return pointer("spec", p.list, p.index) }

// value is of a variable.
func (p slotPlace) value(name string) string {
	i := slices.IndexFunc(p.env, func(e any) bool { return at(e, "name") == name })
	if i < 0 {
		return ""
	}
	value, _ := at(p.env[i], "value").(string)
	return value
}

// recall takes up what an earlier pass has moved from the application to the proxy.
func (b *builder) recall() (probers, error) {
	places, err := b.places(b.earlier)
	if err != nil || len(places) == 0 {
		return nil, err
	}
	b.restoreScrape(places[0].value(contract.PrometheusVariable))
	known, err := parseProbers(places[0].value(contract.ProbersVariable))
	if err != nil {
		return nil, fmt.Errorf("container %s, env %s: %w", places[0].path(), contract.ProbersVariable, err)
	}
	return known, nil
}

// touch adds to a pod that is injected with these settings already what is new in it, such as a container of another webhook's. It
// leaves alone what others have changed in our containers.
func (b *builder) touch(r *recorded) error {
	b.own = *r
	places, err := b.places(r)
	if err != nil || len(places) == 0 {
		return err
	}
	known, err := parseProbers(places[0].value(contract.ProbersVariable))
	if err != nil {
		return fmt.Errorf("container %s, env %s: %w", places[0].path(), contract.ProbersVariable, err)
	}
	b.rewriteProbes(known)
	if err := b.mergePrometheus(); err != nil {
		return err
	}
	for path, h := range known { // what is known stays
		b.probes[path] = h
	}
	for _, p := range places {
		b.refresh(p)
	}
	b.reorder(places)
	slices.Sort(b.own.Annotations)
	b.writeStatus()
	return nil
}

// refresh brings the variables of a slot up to date that speak of the application.
func (b *builder) refresh(p slotPlace) {
	ports, names := b.applicationPorts()
	var before []containerPort
	if json.Unmarshal([]byte(p.value(contract.PodPortsVariable)), &before) == nil {
		for _, port := range ports {
			if !slices.Contains(before, port) && !slices.Contains(before, containerPort{Name: port.Name, ContainerPort: port.ContainerPort}) {
				before = append(before, port)
			}
		}
		b.set(&p, contract.PodPortsVariable, asJSON(before))
	}
	listed := strings.Split(p.value(contract.AppsVariable), ",")
	for _, name := range names {
		if !slices.Contains(listed, name) {
			listed = append(listed, name)
		}
	}
	b.set(&p, contract.AppsVariable, strings.Trim(strings.Join(listed, ","), ","))
	if len(b.probes) > 0 {
		b.set(&p, contract.ProbersVariable, asJSON(b.probes))
	}
	if b.scrape != "" {
		b.set(&p, contract.PrometheusVariable, b.scrape)
	}
}

// set makes a variable of a slot have a value.
func (b *builder) set(p *slotPlace, name, value string) {
	i := slices.IndexFunc(p.env, func(e any) bool { return at(e, "name") == name })
	switch {
	case i < 0:
		b.ops.add(p.path()+"/env/-", map[string]string{"name": name, "value": value})
		p.env = append(p.env, map[string]any{"name": name, "value": value})
	case !sameText(p.value(name), value):
		b.ops.add(p.path()+pointer("env", i, "value"), value)
	}
}

// sameText reports whether two values say the same, whatever JSON they are written as.
func sameText(a, b string) bool {
	if a == b {
		return true
	}
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && asJSON(x) == asJSON(y)
}

// reorder puts our containers where they belong among those that others have added.
func (b *builder) reorder(places []slotPlace) {
	apps := map[string][]element{}
	var capture, proxies []element
	for _, p := range places {
		proxies = append(proxies, element{at: p.index})
	}
	for list, now := range b.pod.lists() {
		for i, c := range now {
			switch {
			case slices.ContainsFunc(places, func(p slotPlace) bool { return p.list == list && p.index == i }):
			case list == initContainers && (c.Name == initName || c.Name == validationName):
				capture = append(capture, element{at: i})
			default:
				apps[list] = append(apps[list], element{at: i})
			}
		}
	}
	b.order(initContainers, apps, capture, proxies)
	b.order(containers, apps, capture, proxies)
}

// writeStatus changes the annotations that this pass has.
func (b *builder) writeStatus() {
	now := b.pod.Metadata.Annotations
	if maps.Equal(now, b.annotations) {
		return
	}
	b.annotations[AnnotationStatus] = asJSON(b.own)
	b.ops.fields("/metadata/annotations", now, b.annotations)
}
