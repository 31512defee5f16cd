package offline

import (
	"strings"
	"testing"
)

// TestRewriteKeepsBlankLines: what is not ours of an injected document is as it was, line by line.
func TestRewriteKeepsBlankLines(t *testing.T) {
	for name, sample := range map[string]string{
		"between everything": `# of the team

apiVersion: apps/v1

kind: Deployment
metadata:

  name: sleep


spec:
  # how many

  replicas: 1

  template:
    metadata:
      labels:
        app: sleep

        tier: web
    spec:

      # all of it
      containers:

      # the application
      - name: sleep
        image: curl

        env:

        - name: A
          value: b

        - name: C
          value: d

      volumes:
      - name: v
        emptyDir: {}

# the next one

`,
		"with a block": "kind: Pod\nmetadata:\n  name: a\n\nspec:\n  containers:\n  - name: a\n    args:\n    - |\n      one\n\n      two\n        three\n\n      four\n\n    image: i\n\n  restartPolicy: Never\n",
		"Windows":      "kind: Pod\r\nmetadata:\r\n  name: a\r\n\r\nspec:\r\n  containers:\r\n  - name: a\r\n\r\n    image: i\r\n",
	} {
		out, err := rewrite(t, sample)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		mustBePatched(t, sample, out)
		rest := strings.SplitAfter(out, "\n")
		for line := range strings.Lines(sample) { // ours are between
			i := 0
			for i < len(rest) && rest[i] != line {
				i++
			}
			if i == len(rest) {
				t.Errorf("%s: line %q is lost, or elsewhere:\n%s", name, line, out)
				break
			}
			rest = rest[i+1:]
		}
		if again, err := rewrite(t, out); again != out || err != nil {
			t.Errorf("%s: a second time: %v\n%s", name, err, again)
		}
	}
}

// TestBlankLinesThatMean: where a blank line is text, the text stays, whatever becomes of the others.
func TestBlankLinesThatMean(t *testing.T) {
	for _, sample := range []string{
		"kind: Pod\n\nmetadata: {annotations: {a: \"one\n\n  two\", b: 'x\n\n  y'}}\n\nspec: {containers: [{name: a}]}\n",
		"kind: Pod\nmetadata:\n  annotations:\n    a: >\n      one\n\n      two\n\n    b: |+\n      one\n\n\nspec:\n\n  containers: [{name: a}]\n",
		"kind: Pod\nmetadata:\n  annotations:\n    a: one\n\n      two\nspec:\n  containers: [{name: a}]\n",
		"kind: Pod # " + blankMark + "\n\nspec:\n  containers: [{name: a, args: ['" + blankMark + "']}]\n",
		"kind: Pod\nspec:\n  containers: [\n\n    {name: a},\n\n    {name: b}\n\n  ]\n",
	} {
		out, err := rewrite(t, sample)
		if err != nil {
			t.Errorf("%v\n%s", err, sample)
			continue
		}
		mustBePatched(t, sample, out)
		if strings.Count(out, blankMark) != strings.Count(sample, blankMark) {
			t.Errorf("a mark is left:\n%s", out)
		}
	}
}
