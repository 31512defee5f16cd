// Package wasm owns the modules of Wasm filters in a pod: how they come from registries, servers and files, what is asked of them
// before an Envoy may have them, and where they are kept.
package wasm
