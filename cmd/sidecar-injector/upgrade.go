package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/klog/v2"

	"understudy.mesh/cmd/sidecar-injector/internal/offline"
	"understudy.mesh/cmd/sidecar-injector/internal/rollout"
	"understudy.mesh/cmd/sidecar-injector/internal/terminal"
	"understudy.mesh/cmd/sidecar-injector/internal/upgrader"
	"understudy.mesh/pkg/logging"
)

// upgradeOptions are the flags of upgrade.
type upgradeOptions struct {
	settings                            settingsFlags
	namespace, image, selector, output  string
	unavailable                         string
	failures                            int32
	canary                              []string
	observe, bake, soak, deadline       time.Duration
	pause, resume, undo, status, dryRun bool
	ignorePDB, force, allowTags         bool
	askByExec                           bool
	identity                            string
	given                               func(flag string) bool
}

func newUpgradeCommand() *cobra.Command {
	var o upgradeOptions
	cmd := &cobra.Command{
		Use:   "upgrade -n NAMESPACE [--image IMAGE]",
		Short: "Upgrade the proxies of running pods in place",
		Long: `Gives the pods of a namespace that have two slots another image of the proxy, in place and without a restart: the idle slot gets the image, its
agent takes over from the other one, which drains and then gets the empty image. It goes from pod to pod as budgets allow, pauses after the first ones, and
stops with the first failure. Without --image it is the image that new pods get; with it, new pods get it as well from then on.

What is asked for is the object SidecarUpgrade "default" of the namespace. The command does the work itself, and follows if another process
does. Run again, it goes on where it was. The exit status is 0 if every pod runs the image, otherwise 1.`,
		Example: "  sidecar-injector upgrade -n shop --image registry.example.com/understudy/proxy:v2\n" +
			"  sidecar-injector upgrade -n shop --undo",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed
			if err := o.validate(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return runtimeError(o.run(ctx, cmd.OutOrStdout(), cmd.ErrOrStderr()))
		},
	}
	host, _ := os.Hostname() // "" is an identity as well
	o.identity = fmt.Sprintf("%s-%d", host, os.Getpid())
	o.add(cmd.Flags())
	return cmd
}

func (o *upgradeOptions) add(f *pflag.FlagSet) {
	f.StringVarP(&o.namespace, "namespace", "n", "", "namespace of the pods")
	f.StringVar(&o.image, "image", "", "the proxy's new image, for new pods as well (default: what new pods get)")
	f.StringVarP(&o.selector, "selector", "l", "", "only pods with these labels, as kubectl takes it (default: all of the namespace)")
	f.StringVar(&o.unavailable, "max-unavailable", rollout.DefaultMaxUnavailable, "pods in a hand-over or unready at once, of the namespace and of each owner: a number or a part")
	f.Int32Var(&o.failures, "max-failures", rollout.DefaultMaxFailures, "with so many failed pods no further one is begun")
	f.DurationVar(&o.observe, "observe", rollout.DefaultObserve, "how long a pod is watched once its new proxy serves")
	f.StringSliceVar(&o.canary, "canary", []string{"1", "1%", "10%"}, "after how many upgraded pods there is a pause")
	f.DurationVar(&o.bake, "bake", rollout.DefaultBake, "the pause after the first pod")
	f.DurationVar(&o.soak, "soak", rollout.DefaultSoak, "the pause after every other step of --canary")
	f.DurationVar(&o.deadline, "deadline", rollout.DefaultDeadline, "how long a pod may take from its new image to a new proxy that serves")
	f.BoolVar(&o.pause, "pause", false, "begin with no further pod")
	f.BoolVar(&o.resume, "resume", false, "go on after --pause or failures")
	f.BoolVar(&o.undo, "undo", false, "go back to the image before, for new pods as well")
	f.BoolVar(&o.status, "status", false, "say how it is, and do nothing")
	f.BoolVar(&o.ignorePDB, "ignore-pdb", false, "let PodDisruptionBudgets not count")
	f.BoolVar(&o.force, "force", false, "begin as well with pods that the kubelet will make unready for a while: at their third switch within ten minutes")
	f.BoolVar(&o.allowTags, "allow-tags", false, "let the upgrader's Deployment set images that are not named by digest")
	f.BoolVar(&o.askByExec, "ask-by-exec", false, "where agents are reached neither at their pods' addresses nor by way of the API server, ask them by pods/exec")
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.StringVarP(&o.output, "output", "o", "", "json: an event a line")
	f.StringVar(&o.settings.kubeconfig, "kubeconfig", "", "how to reach the API server (default: as kubectl does)")
	f.StringVar(&o.settings.kubelet, "kubelet-version", "", "that of the oldest node, such as v1.33.0 (default: the cluster's)")
}

var part = regexp.MustCompile(`^([1-9][0-9]{0,5}|(100|[1-9]?[0-9])%)$`)

func (o *upgradeOptions) validate() error {
	modes := 0
	for _, on := range []bool{o.pause, o.resume, o.undo, o.status} {
		if on {
			modes++
		}
	}
	switch {
	case o.namespace == "":
		return errors.New("flag -n: give the namespace of the pods")
	case o.namespace == offline.InjectorNamespace:
		return fmt.Errorf("flag -n: %q: the injector's own namespace has no injected pods", o.namespace)
	case modes > 1:
		return errors.New("flags --pause, --resume, --undo and --status: give one of them")
	case modes > 0 && (o.image != "" || o.dryRun):
		return errors.New("flags --image and --dry-run are not for --pause, --resume, --undo or --status")
	case o.output != "" && o.output != "json":
		return fmt.Errorf("flag -o: %q: give json, or nothing for text", o.output)
	case !part.MatchString(o.unavailable):
		return fmt.Errorf("flag --max-unavailable: %q: want a number, or a part such as 2%%", o.unavailable)
	case o.failures < 1:
		return fmt.Errorf("flag --max-failures: %d: want at least 1", o.failures)
	}
	for _, c := range o.canary {
		if !part.MatchString(c) {
			return fmt.Errorf("flag --canary: %q: want numbers or parts, such as 1,1%%,10%%", c)
		}
	}
	for flag, d := range map[string]time.Duration{"observe": o.observe, "bake": o.bake, "soak": o.soak, "deadline": o.deadline} {
		if d < 0 {
			return fmt.Errorf("flag --%s: %s: want no less than 0s", flag, d)
		}
	}
	if _, err := metav1.ParseToLabelSelector(o.selector); err != nil {
		return fmt.Errorf("flag -l: %q: %w", o.selector, err)
	}
	return o.settings.check()
}

func (o *upgradeOptions) run(ctx context.Context, out, notes io.Writer) error {
	spareMemory()
	config, err := kubectlConfig(o.settings.kubeconfig)
	if err != nil {
		return err
	}
	check, err := newSettingsCheck(ctx, &o.settings, o.namespace, notes)
	if err != nil {
		return err
	}
	levels, _ := logging.ParseLevels("default:warn") // a constant
	log := logging.New(notes, logging.Options{Levels: levels})
	klog.SetSlogLogger(logging.For(log, "client-go"))
	u, err := upgrader.New(config, o.identity, log)
	if err != nil {
		return err
	}
	if u = u.With(check.outdated); o.askByExec {
		u = u.ByExec()
	}
	before, err := u.Get(ctx, o.namespace)
	if err != nil {
		return err
	}
	if o.status {
		return o.say(before, out)
	}
	spec, err := o.next(ctx, u, before, check, out, notes)
	if err != nil || o.dryRun {
		return err
	}
	asked, err := u.Put(ctx, o.namespace, before, *spec)
	if err != nil {
		return err
	}
	if o.pause {
		_, err := fmt.Fprintf(out, "paused: what was begun is finished; --resume goes on\n")
		return err
	}
	return o.follow(ctx, u, asked, check.deployed() && u.Deployed(ctx, offline.InjectorNamespace), out, notes)
}

// say shows an upgrade as it is.
func (o *upgradeOptions) say(u *rollout.SidecarUpgrade, out io.Writer) error {
	if u == nil {
		return fmt.Errorf("namespace %s: no upgrade was ever asked for", o.namespace)
	}
	d := upgrader.Display{Out: out, JSON: o.output == "json"}
	d.Show(u, time.Now())
	d.End(u, time.Now())
	return incomplete(u)
}

// incomplete is an error unless every pod runs the image.
func incomplete(u *rollout.SidecarUpgrade) error {
	s := u.Status
	if s.Phase != rollout.Done || s.Pods.Done < s.Pods.Total || s.Image != u.Spec.Image {
		return fmt.Errorf("%d of %d pods run %s", s.Pods.Done, s.Pods.Total, u.Spec.Image)
	}
	return nil
}

// next is what is asked for from now on.
func (o *upgradeOptions) next(ctx context.Context, u *upgrader.Upgrader, before *rollout.SidecarUpgrade, check *settingsCheck, out, notes io.Writer) (*rollout.Spec, error) {
	now := metav1.NewTime(time.Now().UTC().Truncate(time.Second))
	if (o.pause || o.resume || o.undo) && before == nil {
		return nil, fmt.Errorf("namespace %s: no upgrade was ever asked for", o.namespace)
	}
	switch {
	case o.pause:
		spec := before.Spec
		spec.Paused, spec.RequestedBy = true, cmp.Or(u.Who(ctx), spec.RequestedBy)
		return &spec, nil
	case o.resume:
		spec := before.Spec
		o.override(&spec)
		spec.Paused, spec.ResumedAt, spec.RequestedBy = false, &now, cmp.Or(u.Who(ctx), spec.RequestedBy)
		return &spec, nil
	case o.undo:
		spec := before.Spec
		if before.Status.PreviousImage == "" {
			return nil, fmt.Errorf("namespace %s: it is not known what its pods ran before %s: give --image", o.namespace, spec.Image)
		}
		o.override(&spec)
		spec.Image, spec.Paused = before.Status.PreviousImage, false
		spec.RequestedAt, spec.ResumedAt = &now, nil
		return o.request(ctx, u, &spec, check, out, notes)
	}
	spec := &rollout.Spec{Image: cmp.Or(o.image, check.image()), RequestedAt: &now}
	if before != nil && before.Spec.Image == spec.Image && before.Status.Image == spec.Image && before.Status.Phase != rollout.Done {
		spec.RequestedAt, spec.ResumedAt = before.Spec.RequestedAt, &now // the same again goes on
	}
	if o.selector != "" {
		spec.Selector, _ = metav1.ParseToLabelSelector(o.selector) // validate has parsed it
	}
	o.override(spec)
	return o.request(ctx, u, spec, check, out, notes)
}

// override sets what flags say; with a new request, everything.
func (o *upgradeOptions) override(s *rollout.Spec) {
	anew := s.MaxUnavailable == nil
	set := func(flag string, do func()) {
		if anew || o.given(flag) {
			do()
		}
	}
	duration := func(d time.Duration) *metav1.Duration { return &metav1.Duration{Duration: d} }
	set("max-unavailable", func() { s.MaxUnavailable = new(intstr.Parse(o.unavailable)) })
	set("max-failures", func() { s.MaxFailures = &o.failures })
	set("observe", func() { s.Observe = duration(o.observe) })
	set("bake", func() { s.Bake = duration(o.bake) })
	set("soak", func() { s.Soak = duration(o.soak) })
	set("deadline", func() { s.Deadline = duration(o.deadline) })
	set("ignore-pdb", func() { s.IgnorePDB = o.ignorePDB })
	set("force", func() { s.Force = o.force })
	set("allow-tags", func() { s.AllowTags = o.allowTags })
	set("canary", func() {
		s.Canary = []intstr.IntOrString{}
		for _, c := range o.canary {
			s.Canary = append(s.Canary, intstr.Parse(c))
		}
	})
}

// request completes what is asked for, says what is to be known of it, and lets new pods have the image.
func (o *upgradeOptions) request(ctx context.Context, u *upgrader.Upgrader, spec *rollout.Spec, check *settingsCheck, out, notes io.Writer) (*rollout.Spec, error) {
	pods, err := u.Pods(ctx, o.namespace)
	if err != nil {
		return nil, err
	}
	if len(pods) == 0 {
		return nil, fmt.Errorf("namespace %s: no pod has two slots: set hotUpgrade.emptyImage in a SidecarProfile, and restart the workloads", o.namespace)
	}
	spec.RequestedBy = u.Who(ctx)
	allowed := append(upgrader.Images(pods), spec.Image)
	slices.Sort(allowed)
	spec.AllowedImages = slices.Compact(allowed)
	if spec.Force {
		fmt.Fprintln(notes, "--force: a pod's third switch within ten minutes makes it unready for 10 s, the next for 20 s, and so on")
	}
	if n := check.manual; n > 0 {
		fmt.Fprintf(notes, "%d pods have their slots from their own template: new pods get the image that is written there\n", n)
	}
	if o.dryRun {
		return nil, o.plan(spec, pods, out)
	}
	if check.deployed() && u.Deployed(ctx, offline.InjectorNamespace) && !spec.AllowTags && !strings.Contains(spec.Image, "@sha256:") {
		return nil, fmt.Errorf("image %s: the upgrader's Deployment sets images by digest alone: name it by digest, or give --allow-tags", spec.Image)
	}
	if (o.image != "" || o.undo) && check.manual < len(pods) {
		if err := u.WriteImage(ctx, o.namespace, spec.Image); err != nil {
			return nil, err
		}
	}
	return spec, nil
}

// plan says what would be done.
func (o *upgradeOptions) plan(spec *rollout.Spec, pods []*rollout.Pod, out io.Writer) error {
	s := upgrader.Try(*spec, pods)
	for _, h := range s.Held {
		fmt.Fprintf(out, "held: pod %s: %s\n", h.Pod, h.Reason)
	}
	p := s.Pods
	fmt.Fprintf(out, "%d pods would get %s; %d of %d run it, %d are held\n", p.Total-p.Done-p.Held-p.InFlight-p.Draining-p.Failed, spec.Image, p.Done, p.Total, p.Held)
	return nil
}

// follow shows the upgrade until it is over, and does it unless somebody else is at it.
func (o *upgradeOptions) follow(ctx context.Context, u *upgrader.Upgrader, asked *rollout.SidecarUpgrade, deployed bool, out, notes io.Writer) error {
	working, stop := context.WithCancel(ctx)
	var work errgroup.Group
	if !deployed {
		work.Go(func() error {
			return u.Run(working, o.namespace, func(holder string) { fmt.Fprintf(notes, "%s is at work on it\n", holder) })
		})
	}
	d := upgrader.Display{Out: out, JSON: o.output == "json", Live: terminal.Is(out)}
	var last *rollout.SidecarUpgrade
	err := u.Follow(ctx, o.namespace, func(now *rollout.SidecarUpgrade) bool {
		if s := now.Status; s.ObservedGeneration < asked.Generation || s.Image != now.Spec.Image {
			return false
		}
		last = now
		d.Show(now, time.Now())
		return now.Status.Finished != nil || now.Status.Phase == rollout.Paused && now.Status.Pods.InFlight+now.Status.Pods.Draining == 0
	})
	stop()
	if workErr := work.Wait(); workErr != nil && ctx.Err() == nil {
		return workErr
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted: what was begun is as it is, and every pod serves; the same command with --resume goes on")
	case err != nil:
		return err
	}
	d.End(last, time.Now())
	return incomplete(last)
}
