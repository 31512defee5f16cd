package security

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"understudy.mesh/pkg/security/credential"
)

const (
	// backoffFirst and backoffLast bound the pause before another attempt, anything from a half of a limit that doubles up to
	// that limit, so that the pods of a mesh do not come to a CA that is back at one moment. While there is a certificate
	// that is valid, backoffValid is the last limit: nobody waits.
	backoffFirst = 500 * time.Millisecond
	backoffLast  = 60 * time.Second
	backoffValid = 150 * time.Second
	// betweenCertificates is the least time between two certificates, whatever they and the clock say: a CA must not be asked in a loop.
	betweenCertificates = 10 * time.Second
	// rootsLead is how long new roots are in force before the certificate that they came with: Envoy takes them in milliseconds.
	rootsLead = time.Second
	// lookEvery is the longest that passes without a look at the certificate's age: somebody may have set the clock.
	lookEvery = 10 * time.Minute
	// expiredEvery is how often an expired certificate is logged.
	expiredEvery = time.Minute
	// firstWarning and lastWarning are parts of a lifetime that are left when its end is logged, if no other certificate could be had.
	firstWarning, lastWarning = 0.25, 0.10
)

// renewal keeps the workload's certificate: one goroutine, one select. Everything in it belongs to that goroutine.
type renewal struct {
	m      *Manager
	sign   func(ctx context.Context, csr []byte) (chain []string, err error)
	random func() float64 // from 0 to 1

	due      *time.Timer     // the next attempt
	attempt  chan answer     // of the attempt under way; nil: none is
	key      *credential.Key // of a series of attempts; nil: the next attempt makes one
	failures int             // in a row
	reason   string          // of the last failure that was logged
	rotate   time.Time       // when the certificate is to be replaced
	lead     *time.Timer     // until a credential is in force whose roots are
	look     *time.Timer     // the next look at the age of the certificate and of old roots
	warned   float64         // the part of the lifetime of which the last warning was
}

// answer is how an attempt ended.
type answer struct {
	key        *credential.Key // for another attempt; nil: none could be made
	credential *credential.Credential
	err        error
}

func newRenewal(m *Manager, sign func(context.Context, []byte) ([]string, error)) *renewal {
	return &renewal{m: m, sign: sign, random: rand.Float64}
}

// run keeps the certificate until ctx ends.
func (r *renewal) run(ctx context.Context) {
	r.due, r.lead, r.look = time.NewTimer(0), time.NewTimer(0), time.NewTimer(0)
	r.lead.Stop()
	retired := r.m.retired
	if c := r.m.newest(); c != nil { // a predecessor's
		r.schedule(c)
		r.due.Reset(time.Until(r.rotate))
	}
	for {
		select {
		case <-ctx.Done():
			if r.attempt != nil {
				<-r.attempt // its context has ended
			}
			r.due.Stop()
			r.lead.Stop()
			r.look.Stop()
			return
		case <-retired:
			retired = nil
			r.retire()
		case <-r.due.C:
			r.begin(ctx)
		case a := <-r.attempt:
			r.attempt, r.key = nil, a.key
			switch {
			case a.err == nil:
				r.obtained(a.credential)
			case ctx.Err() == nil:
				r.failed(a.err)
			}
		case <-r.lead.C:
			r.m.enforce()
		case <-r.look.C:
			r.lookAt(time.Now())
		}
	}
}

// begin makes an attempt, of which there is one at a time.
func (r *renewal) begin(ctx context.Context) {
	answers := make(chan answer, 1)
	r.attempt = answers
	if r.failures > 0 {
		r.m.retries.Add(1)
	}
	key := r.key
	go func() { answers <- r.ask(ctx, key) }()
}

// ask asks the CA for a certificate, with a key of an attempt before or a new one, and checks what it gives.
func (r *renewal) ask(ctx context.Context, key *credential.Key) answer {
	if key == nil {
		var err error
		if key, err = credential.NewKey(r.m.c.Key); err != nil {
			return answer{err: err}
		}
	}
	id := r.m.c.id()
	csr, err := key.Request(id)
	if err != nil {
		return answer{err: err}
	}
	r.m.requests.Add(1)
	asked := time.Now()
	chain, err := r.sign(ctx, csr)
	r.m.waited.Add(int64(time.Since(asked)))
	if err != nil {
		return answer{key: key, err: err}
	}
	now := time.Now()
	parts := credential.Parts{Chain: credential.Join(chain), Key: key.PEM(), Roots: []byte(chain[len(chain)-1])}
	c, err := credential.New(parts, id, now, now)
	if err != nil {
		return answer{key: key, err: fmt.Errorf("the CA at %s: what it has signed is of no use: %w", r.m.c.CA, err)}
	}
	return answer{credential: c}
}

// obtained brings a new certificate into force.
func (r *renewal) obtained(c *credential.Credential) {
	r.failures, r.reason = 0, ""
	r.m.refused(nil)
	r.schedule(c)
	r.m.log.Info("the workload has a certificate", "id", r.m.c.id(), "issuer", c.Issuer, "until", c.NotAfter, "next", r.rotate)
	r.due.Reset(max(betweenCertificates, time.Until(r.rotate)))
	if r.m.admit(c, time.Now()) {
		r.lead.Reset(rootsLead)
	}
	r.look.Reset(0)
}

// schedule says when a certificate is to be replaced.
func (r *renewal) schedule(c *credential.Credential) {
	grace := r.m.c.Grace + r.m.c.GraceJitter*(2*r.random()-1)
	grace = min(max(grace, 0), 1)
	r.rotate = c.NotAfter.Add(-time.Duration(grace * float64(c.Lifetime()))).Round(0) // by the clock of the wall, as certificates go
	r.warned = 1
}

// retire puts the next certificate off until the present one is about to expire: a drain is over by then, as a rule.
func (r *renewal) retire() {
	c := r.m.newest()
	if c == nil {
		return
	}
	r.rotate = c.NotAfter.Add(-time.Duration(lastWarning * float64(c.Lifetime()))).Round(0)
	if r.attempt == nil {
		r.due.Reset(time.Until(r.rotate))
	}
}

// failed waits before the next attempt.
func (r *renewal) failed(err error) {
	r.m.failures.Add(1)
	r.m.refused(err)
	wait := r.pause()
	r.failures++
	r.due.Reset(wait)
	log := r.m.log.Debug
	if err.Error() != r.reason {
		log, r.reason = r.m.log.Warn, err.Error()
	}
	if c := r.m.newest(); c != nil {
		log("no new certificate: the one before serves on", "err", err, "until", c.NotAfter, "retry", wait.Round(time.Millisecond))
		return
	}
	r.m.fail(err)
	log("no certificate", "err", err, "retry", wait.Round(time.Millisecond))
}

// pause is how long to wait after a failure.
func (r *renewal) pause() time.Duration {
	limit := backoffLast
	if c := r.m.newest(); c != nil && time.Now().Before(c.NotAfter) {
		limit = backoffValid
	}
	if r.failures < 16 { // doubled so often it is beyond any limit
		limit = min(limit, backoffFirst<<r.failures)
	}
	return limit/2 + time.Duration(r.random()*float64(limit/2))
}

// lookAt looks at the age of the certificate and of old roots, and says when to look again.
func (r *renewal) lookAt(now time.Time) {
	next := now.Add(lookEvery)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) {
			next = t
		}
	}
	sooner(r.m.dropOldRoots(now))
	if c := r.m.newest(); c != nil {
		for _, part := range []float64{firstWarning, lastWarning, 0} {
			sooner(c.NotAfter.Add(-time.Duration(part * float64(c.Lifetime()))))
		}
		r.warn(c, now)
		if !now.Before(c.NotAfter) {
			sooner(now.Add(expiredEvery))
		}
		if r.failures == 0 && r.attempt == nil && now.After(r.rotate) && now.Sub(c.Obtained) >= betweenCertificates { // the clock was set
			r.due.Reset(0)
		}
	}
	r.look.Reset(next.Sub(now))
}

// warn logs that a certificate is about to end, or has ended, and that there is no other. Envoy keeps it even so: peers refuse
// it, but who asks for none is served, and an outage of the CA does not empty all Services at one moment.
func (r *renewal) warn(c *credential.Credential, now time.Time) {
	if r.failures == 0 {
		return
	}
	left := c.NotAfter.Sub(now)
	part := float64(left) / float64(c.Lifetime())
	switch {
	case left <= 0:
		r.m.log.Error("the workload's certificate has expired, peers refuse it", "until", c.NotAfter, "err", r.reason)
	case part <= lastWarning && r.warned > lastWarning:
		r.warned = lastWarning
		r.m.log.Error("the workload's certificate is about to expire", "left", left.Round(time.Second), "err", r.reason)
	case part <= firstWarning && r.warned > firstWarning:
		r.warned = firstWarning
		r.m.log.Warn("three quarters of the lifetime of the workload's certificate are over, and there is no other", "left", left.Round(time.Second), "err", r.reason)
	}
}
