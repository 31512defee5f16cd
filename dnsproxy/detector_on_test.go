//go:build race

package dnsproxy

// raceDetector says whether the test runs under it.
const raceDetector = true
