package security

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline is one for what ought to take less than a second.
const deadline = 20 * time.Second
