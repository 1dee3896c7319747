// Rolls up an hour with one goroutine for each object.
//
// -max-conns 0 sets no limit of connections and can exceed the open-file limit; -max-conns 250 avoids that.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go/aws"
	"github.com/aws/aws-sdk-go/aws/session"
	"github.com/aws/aws-sdk-go/service/s3"
)

func main() {
	endpoint := flag.String("endpoint", "", "URL of the S3 server")
	region := flag.String("region", "us-east-1", "region of the server")
	bucket := flag.String("bucket", "", "bucket of raw objects and parts")
	raw := flag.String("raw", "", "prefix of the raw objects")
	out := flag.String("out", "", "prefix of the parts")
	partBytes := flag.Int("part-bytes", 32<<20, "maximum size of a part in bytes")
	maxConns := flag.Int("max-conns", 0, "MaxConnsPerHost; 0 for no limit")
	flag.Parse()

	transport := &http.Transport{
		DialContext: (&net.Dialer{
			Timeout:   5 * time.Second,
			KeepAlive: 30 * time.Second,
		}).DialContext,
		MaxConnsPerHost:     *maxConns,
		MaxIdleConns:        *maxConns,
		MaxIdleConnsPerHost: 250,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 30 * time.Second,
	}
	client := s3.New(session.Must(session.NewSession(&aws.Config{
		Endpoint:         endpoint,
		Region:           region,
		S3ForcePathStyle: aws.Bool(true),
		HTTPClient:       &http.Client{Transport: transport},
	})))

	bodies := make(chan []byte)
	var downloads sync.WaitGroup
	err := client.ListObjectsV2Pages(
		&s3.ListObjectsV2Input{Bucket: bucket, Prefix: raw},
		func(page *s3.ListObjectsV2Output, _ bool) bool {
			for _, object := range page.Contents {
				downloads.Add(1)
				go func(key *string) {
					defer downloads.Done()
					answer, err := client.GetObject(&s3.GetObjectInput{Bucket: bucket, Key: key})
					if err != nil {
						log.Fatalf("GET %s: %v", *key, err)
					}
					body, err := io.ReadAll(answer.Body)
					answer.Body.Close()
					if err != nil {
						log.Fatalf("GET %s: %v", *key, err)
					}
					bodies <- body
				}(object.Key)
			}
			return true
		})
	if err != nil {
		log.Fatalf("LIST %s: %v", *raw, err)
	}
	go func() {
		downloads.Wait()
		close(bodies)
	}()

	var uploads sync.WaitGroup
	parts := 0
	put := func(part []byte) {
		key := fmt.Sprintf("%spart-%05d.log", *out, parts)
		parts++
		uploads.Add(1)
		go func() {
			defer uploads.Done()
			_, err := client.PutObject(&s3.PutObjectInput{
				Bucket: bucket, Key: &key, Body: bytes.NewReader(part),
			})
			if err != nil {
				log.Fatalf("PUT %s: %v", key, err)
			}
		}()
	}
	var part []byte
	for body := range bodies {
		if len(part) > 0 && len(part)+len(body) > *partBytes {
			put(part)
			part = nil
		}
		part = append(part, body...)
	}
	if len(part) > 0 {
		put(part)
	}
	uploads.Wait()
}
