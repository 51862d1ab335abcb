// A Go server on the listeners that it inherits (LISTEN_FDS, sd_listen_fds(3)): go build -o server server.go
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
)

// listeners returns those of LISTEN_FDS. The package github.com/coreos/go-systemd/activation does the same.
func listeners() (found []net.Listener, err error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, fmt.Errorf("start me with: multibinder exec -b 127.0.0.1:8000 -- server")
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for fd := 3; err == nil && fd < 3+count; fd++ {
		var listener net.Listener
		file := os.NewFile(uintptr(fd), "listener")
		listener, err = net.FileListener(file) // a copy
		file.Close()
		found = append(found, listener)
	}
	return found, err
}

func main() {
	inherited, err := listeners()
	if err != nil {
		log.Fatal(err)
	}
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(answer, os.Getpid())
	})
	server := &http.Server{}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	var accepting sync.WaitGroup
	for _, listener := range inherited {
		accepting.Add(1)
		go func(listener net.Listener) {
			defer accepting.Done()
			server.Serve(listener)
		}(listener)
	}
	fmt.Println("ready")
	<-stop
	// Shutdown does not know of a client that is accepted in the same moment. So accept no more first.
	for _, listener := range inherited {
		listener.Close()
	}
	accepting.Wait()
	if err := server.Shutdown(context.Background()); err != nil {
		log.Fatal(err)
	}
}
