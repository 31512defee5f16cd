package build

import "testing"

// BenchmarkLoad reads 1,000 ServiceEntries of one file, as an agent does before it can serve anything.
func BenchmarkLoad(b *testing.B) {
	dir := writeFiles(b, manyEntries(1000, 1000))
	b.ReportAllocs()
	for b.Loop() {
		s, _ := newTestSource(b, dir, testOptions())
		if _, err := s.Load(); err != nil {
			b.Fatal(err)
		}
	}
}
