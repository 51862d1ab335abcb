import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.SelectionKey;
import java.nio.channels.Selector;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import sun.misc.Signal;

/** A Java server on the listener that it inherits as descriptor 0 (System.inheritedChannel): javac -d /srv/java Server.java */
public class Server {
    private static void answer(SocketChannel client) {
        try (client) {
            client.configureBlocking(true);
            client.read(ByteBuffer.allocate(8192));
            String answer = "HTTP/1.0 200 OK\r\n\r\n" + ProcessHandle.current().pid() + "\n";
            client.write(ByteBuffer.wrap(answer.getBytes()));
        } catch (IOException error) {
            System.err.println(error);
        }
    }

    public static void main(String[] arguments) throws IOException, InterruptedException {
        if (!(System.inheritedChannel() instanceof ServerSocketChannel listener)) {
            System.err.println("start me with: multibinder exec -b 127.0.0.1:8000 --style stdin -- java Server");
            System.exit(1);
            return;
        }
        // The listener does not block, because another copy may take the client that this one is waked for.
        listener.configureBlocking(false);
        Selector selector = Selector.open();
        listener.register(selector, SelectionKey.OP_ACCEPT);
        ExecutorService threads = Executors.newCachedThreadPool();
        boolean[] stopping = {false};
        Signal.handle(new Signal("TERM"), signal -> {
            stopping[0] = true;
            selector.wakeup();
        });
        System.out.println("ready");
        while (!stopping[0]) {
            selector.select(key -> {
                try {
                    SocketChannel client = listener.accept();
                    if (client != null) {
                        threads.execute(() -> answer(client));
                    }
                } catch (IOException error) {
                    System.err.println(error);
                }
            });
        }
        threads.shutdown();
        threads.awaitTermination(30, TimeUnit.SECONDS);
        // close() would put /dev/null in the place of descriptors 0, 1 and 2.
    }
}
