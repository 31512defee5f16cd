package envoy

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestOutside: the names and arguments by which an Envoy finds its agent are Envoy's own, and no agent's to change.
func TestOutside(t *testing.T) {
	r := Rendezvous{Path: "/p/hr", Base: 7}
	var text strings.Builder
	for what, path := range map[string]string{
		"/p/hr_parent_70": r.parentSocket(), "/p/hr_parent_71": r.envoyParentSocket(),
		"/p/hr_child_71": r.envoyChildSocket(), "/p/hr_child_72": r.childSocket(),
		"/p/hr_udp_child_71":              r.socket("udp_child", envoyEpoch),
		"/dev/shm/envoy_shared_memory_70": memoryPath(SharedMemoryDir, 7),
		"--base-id 7 --restart-epoch 1 --socket-path /p/hr --socket-mode 0600 --parent-shutdown-time-s 3 --skip-hot-restart-parent-stats": strings.Join(
			Args(ArgsConfig{Rendezvous: r, ParentShutdown: 3 * time.Second, SkipStats: true}), " "),
	} {
		if path != what {
			t.Errorf("%q, want %q", path, what)
		}
	}
	for k := kind(1); k <= kindTestConnection; k++ {
		fmt.Fprintf(&text, "%d %s\n", k, k)
	}
	const want = "1 pass_listen_socket\n2 shutdown_admin\n3 stats\n4 drain_listeners\n5 terminate\n6 forwarded_udp_packet\n7 test_connection\n"
	if text.String() != want {
		t.Errorf("messages:\n%swant\n%s", text.String(), want)
	}
	memory, err := CreateSharedMemory(t.TempDir(), Version{Version: 11, Size: 104})
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	content, err := os.ReadFile(memory.file.Name())
	if err != nil || len(content) != 104+len("understudy") || string(content[104:]) != "understudy" || filepath.Base(memory.file.Name()) != fmt.Sprintf("envoy_shared_memory_%d0", memory.Base()) {
		t.Errorf("%s holds %q, %v", memory.file.Name(), content, err)
	}
}
