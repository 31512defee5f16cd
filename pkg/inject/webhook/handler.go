// Package webhook owns the outside of the admission webhook: the answer to an AdmissionReview, and the
// MutatingWebhookConfiguration by which the API server knows what to ask about. What becomes of a pod it is told by a [Mutator].
package webhook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"reflect"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"understudy.mesh/pkg/inject/internal/skim"
)

const (
	// Path is where the API server asks. Below it may stand what the cluster says of itself (cluster/X/net/Y).
	Path = "/inject"
	// maxBody is more than the API server can store of a pod, twice: a review holds it once, escaped at most.
	maxBody = 6 << 20
)

// The versions of a review that are understood; the answer has the version of the question.
const group = "admission.k8s.io/"

// Request is what is asked about one pod.
type Request struct {
	Namespace string
	// Path is what the URL has below [Path], without slashes around it.
	Path string
	// Pod is the object as the API server sent it.
	Pod []byte
}

// Result is what becomes of the pod: a JSON patch, or none and the rule by which it stays as it is.
type Result struct {
	Patch    []byte
	Rule     string
	Warnings []string
}

// Mutator says what becomes of a pod. An error refuses it, with its text as the reason.
type Mutator func(context.Context, Request) (Result, error)

// Handler answers reviews.
type Handler struct {
	mutate  Mutator
	metrics *Metrics
	log     *slog.Logger
}

// NewHandler returns one that asks mutate.
func NewHandler(mutate Mutator, metrics *Metrics, log *slog.Logger) *Handler {
	return &Handler{mutate: mutate, metrics: metrics, log: log}
}

// review is an AdmissionReview of either version, of which we read the same fields.
type review struct {
	metav1.TypeMeta `json:",inline"`
	Request         *admissionv1.AdmissionRequest  `json:"request,omitempty"`
	Response        *admissionv1.AdmissionResponse `json:"response,omitempty"`
}

// questionShape is what is read of a review at once: all but the pod, which is most of it.
var questionShape = skim.Of(reflect.TypeFor[metav1.TypeMeta]()).
	With("request", skim.Of(reflect.TypeFor[admissionv1.AdmissionRequest]()).With("object", skim.Cut))

// parse reads a review as the API server would: names of fields have a case.
func parse(body []byte) (question review, err error) {
	kept, pod, ok := questionShape.Skim(body)
	if !ok || kjson.UnmarshalCaseSensitivePreserveInts(kept, &question) != nil {
		question = review{}
		err = kjson.UnmarshalCaseSensitivePreserveInts(body, &question)
		return question, err
	}
	if question.Request != nil {
		question.Request.Object.Raw = pod
	}
	return question, nil
}

// badRequest is a question that is none: nobody but the API server asks, so its status says what was wrong with it.
type badRequest struct {
	status int
	reason string
}

func (e *badRequest) Error() string { return e.reason }

// ServeHTTP implements http.Handler. Every answer is an AdmissionReview; one that could not be read is refused in it.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	h.metrics.requests.Inc()
	answer := review{TypeMeta: metav1.TypeMeta{Kind: "AdmissionReview", APIVersion: group + "v1"}}
	status := http.StatusOK
	question, err := read(r)
	if err == nil {
		answer.APIVersion = question.APIVersion
		answer.Response, err = h.answer(r, question.Request)
	}
	if err != nil {
		h.metrics.failures.Inc()
		answer.Response = refusal(question, err)
		var bad *badRequest
		if errors.As(err, &bad) {
			status = bad.status
		}
		h.log.Error("pod refused", "path", r.URL.Path, "pod", nameOf(question), "err", err)
	}
	body, err := json.Marshal(answer)
	if err != nil { // nothing in an answer can fail to marshal
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if _, err := w.Write(body); err != nil {
		h.log.Warn("answer not taken", "pod", nameOf(question), "err", err)
	}
	h.metrics.seconds.Observe(time.Since(began).Seconds())
}

// read takes the question out of a request.
func read(r *http.Request) (question review, err error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return review{}, &badRequest{http.StatusUnsupportedMediaType, fmt.Sprintf("content type %q: want application/json", r.Header.Get("Content-Type"))}
	}
	var text bytes.Buffer
	if size := r.ContentLength; size > 0 && size <= maxBody {
		text.Grow(int(size) + bytes.MinRead) // at once, instead of copying it as it grows
	}
	_, err = text.ReadFrom(io.LimitReader(r.Body, maxBody+1))
	body := text.Bytes()
	switch {
	case err != nil:
		return review{}, &badRequest{http.StatusBadRequest, fmt.Sprintf("read the review: %v", err)}
	case len(body) > maxBody:
		return review{}, &badRequest{http.StatusRequestEntityTooLarge, fmt.Sprintf("the review has more than %d bytes", maxBody)}
	case len(body) == 0:
		return review{}, &badRequest{http.StatusBadRequest, "the request has no body: want an AdmissionReview"}
	case !utf8.Valid(body):
		return review{}, &badRequest{http.StatusBadRequest, "the review is not UTF-8"}
	}
	if question, err = parse(body); err != nil {
		return review{}, &badRequest{http.StatusBadRequest, fmt.Sprintf("the review is not JSON of an AdmissionReview: %v", err)}
	}
	version, found := strings.CutPrefix(question.APIVersion, group)
	if question.Kind != "AdmissionReview" || !found || version != "v1" && version != "v1beta1" {
		bad := fmt.Sprintf("apiVersion %q, kind %q: want an AdmissionReview of %sv1", question.APIVersion, question.Kind, group)
		question.APIVersion = group + "v1"
		return question, &badRequest{http.StatusBadRequest, bad}
	}
	if question.Request == nil {
		return question, &badRequest{http.StatusBadRequest, "the AdmissionReview has no request"}
	}
	return question, nil
}

// answer asks the mutator. A panic of it is this pod's alone.
func (h *Handler) answer(r *http.Request, q *admissionv1.AdmissionRequest) (response *admissionv1.AdmissionResponse, err error) {
	defer func() {
		if cause := recover(); cause != nil {
			h.log.Error("panic", "cause", cause, "stack", string(debug.Stack()))
			response, err = nil, fmt.Errorf("the injector failed on this pod, which is its fault and in its log: %v", cause)
		}
	}()
	if q.Resource.Group != "" || q.Resource.Resource != "pods" || q.SubResource != "" {
		return nil, fmt.Errorf("asked about %s: only pods are injected, so the webhook's rules are wrong", strings.Trim(q.Resource.Group+"/"+q.Resource.Resource+"/"+q.SubResource, "/"))
	}
	if q.Operation != admissionv1.Create {
		return nil, fmt.Errorf("asked about the operation %s: pods are injected as they are created, so the webhook's rules are wrong", q.Operation)
	}
	if len(q.Object.Raw) == 0 || string(q.Object.Raw) == "null" {
		return nil, errors.New("the request has no object")
	}
	result, err := h.mutate(r.Context(), Request{
		Namespace: q.Namespace, Path: strings.Trim(strings.TrimPrefix(r.URL.Path, Path), "/"), Pod: q.Object.Raw,
	})
	if err != nil {
		return nil, err
	}
	response = &admissionv1.AdmissionResponse{UID: q.UID, Allowed: true, Warnings: result.Warnings}
	if result.Patch == nil {
		h.metrics.skips.WithLabelValues(result.Rule).Inc()
		return response, nil
	}
	form := admissionv1.PatchTypeJSONPatch
	response.Patch, response.PatchType = result.Patch, &form
	h.metrics.successes.Inc()
	return response, nil
}

func refusal(question review, err error) *admissionv1.AdmissionResponse {
	response := &admissionv1.AdmissionResponse{Result: &metav1.Status{
		Status: metav1.StatusFailure, Message: "sidecar-injector: " + err.Error(), Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity,
	}}
	if question.Request != nil {
		response.UID = question.Request.UID
	}
	return response
}

// nameOf is whom a question is about, as far as it says.
func nameOf(question review) string {
	if question.Request == nil {
		return ""
	}
	return question.Request.Namespace + "/" + question.Request.Name
}
